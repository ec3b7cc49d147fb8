"""Pictures of what verbs say: a plan as a graph, memory as bars. SVG and HTML that ask for nothing."""
