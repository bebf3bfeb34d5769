"""A batch as a plan, and what computes it: any mix of adapters in one pass of the frozen backbone."""
