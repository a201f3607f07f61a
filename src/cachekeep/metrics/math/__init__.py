"""Metric math: expressions over time series, as CloudWatch reads and reckons them. Pure."""
