"""Scene graphs of anyone's images: predictor, files, page, demo, export."""
