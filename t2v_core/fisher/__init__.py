"""The Fisher information of a probe's filters: exact, by Monte Carlo, and under variational noise."""

from t2v_core.fisher.accumulate import FisherEstimate, prior_weight
from t2v_core.fisher.estimate import ESTIMATORS, estimate_fisher, fisher_filters

__all__ = ["ESTIMATORS", "FisherEstimate", "estimate_fisher", "fisher_filters", "prior_weight"]
