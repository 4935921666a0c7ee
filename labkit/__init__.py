"""The whole life of a language model, in notebooks that you run step by step"""
__version__ = "0.1.0"
