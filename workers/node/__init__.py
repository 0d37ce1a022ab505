"""What serves a machine?"""
