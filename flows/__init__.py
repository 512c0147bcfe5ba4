"""The flows: thin stages over `t2v_core`, and the only code that knows a store, a cluster or a tracker."""
