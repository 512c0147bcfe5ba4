"""The Fisher information of a probe's filters: exact, and by Monte Carlo."""

from t2v_core.fisher.estimate import ESTIMATORS, FisherEstimate, estimate_fisher, fisher_filters

__all__ = ["ESTIMATORS", "FisherEstimate", "estimate_fisher", "fisher_filters"]
