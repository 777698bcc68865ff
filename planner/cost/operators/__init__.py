"""What one operator takes on one device: roofline times a small grid of log residuals."""
