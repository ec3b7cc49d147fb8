"""Many machines as one: which node takes which step of a plan, what happens there, and Ray that brings it there"""
