"""`lorafold compare`: questions, answers, report; `compare.compare` is the entry."""
