"""What the laboratory stands on: its folder, accounts and secrets, the servers, flow runs in Prefect, how processes end."""
