"""What the flows are made of, in rooms: data, runs, tracking (MLflow) and report; besides, where things lie and who has a key."""
