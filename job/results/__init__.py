"""Results: what types their columns have, how they are stored, and what makes them count."""
