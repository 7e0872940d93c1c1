"""Files that leave the lab: packed networks, and what reads them."""
