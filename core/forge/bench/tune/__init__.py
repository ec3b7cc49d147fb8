"""Which settings of a recipe serve best under a goal: measured by successive halving, and written back with the evidence"""
