"""What each engine is and speaks. Pure: nothing here runs a program or knows the time."""
