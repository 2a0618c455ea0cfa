"""Where, when and with which parameters the flows run."""
