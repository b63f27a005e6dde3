"""MLflow's runs, and the journal that is sent to them."""
