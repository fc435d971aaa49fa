"""From predictors to scores, predictions, a submission file and exported files."""
