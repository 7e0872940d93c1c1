"""The same networks as a user of another library, or of plain Flax, would write them."""
