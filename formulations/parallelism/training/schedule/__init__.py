"""Order of forward, input-gradient and weight-gradient passes on the devices of a pipeline."""
