"""Programs: rules over the history of tokens that steer a generation at any position; torch only."""
