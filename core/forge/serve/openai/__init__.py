"""OpenAI's API over served models: what a client asks, who is asked, what comes back. See docs/openai.md."""
