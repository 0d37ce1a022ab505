"""What is here?"""
