"""All that a build needs of the world, in one file: made where there is a network, built from where there is none"""
