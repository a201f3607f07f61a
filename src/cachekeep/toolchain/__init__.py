"""Engine builds of this machine: found, fetched, compiled. The only room that runs other people's tools.

Imports nothing itself: set-up reads this package before anything is installed.
"""
