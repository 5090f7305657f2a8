"""Rewards that run elsewhere: HTTP servers, vision-language models, Ray actors."""
