"""Parts that tests share: models of random weights, small runs, processes that can be killed."""
