"""The paper's tables, figures and claims, from what a run left behind."""
