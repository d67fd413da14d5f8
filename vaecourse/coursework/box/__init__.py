"""What runs beside student code, and the walls around it."""
