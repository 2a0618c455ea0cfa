"""The colours of arms, in the report's figures and of their runs in MLflow."""

# Okabe and Ito, "Color Universal Design", 2008, without their yellow, too pale for a line; then Tol's "muted" ones: told apart
# by colour-blind readers
COLOURS = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    "#332288", "#882255", "#999933", "#44AA99", "#661100", "#888888",
)  # fmt: skip
