"""What is done to any spectrum, observed or synthetic, before it enters the method."""
