"""Counterfactuals: do scores predict what happens when training data are left out?"""
