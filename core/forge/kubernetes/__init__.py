"""A deployment as Kubernetes and KServe take it: jobs that build, and a server with its service"""
