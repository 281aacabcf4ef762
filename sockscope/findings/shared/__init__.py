"""What several rules look at, and how all of them say it. No rule is here, and none of these knows a rule."""
