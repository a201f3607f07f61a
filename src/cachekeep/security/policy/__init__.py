"""The policy language: parsed to a tree when a policy is stored, evaluated for each request. Pure.

Rules: IAM User Guide, "IAM JSON policy element reference" and "Policy evaluation logic".
"""
