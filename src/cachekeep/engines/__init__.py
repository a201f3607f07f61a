"""What each engine is and speaks.

Imports nothing itself: set-up reads this package before anything is installed.
"""
