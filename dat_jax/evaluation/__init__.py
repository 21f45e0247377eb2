"""Attacks, judges, utility and the report: robustness is the worst case over attacks, at the utility that was kept."""
