"""What is measured: collected once a minute, kept for 455 days, and told as CloudWatch and Prometheus tell it."""
