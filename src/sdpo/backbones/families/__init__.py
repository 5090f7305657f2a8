"""The pipeline families, one file each; `unet` and `flow_match` hold what several of them share."""
