"""Defects of libraries that were found on the way, each as a program that uses the library as its documentation says.

`main()` of each gives what was claimed, observed and expected, and whether it `holds`: whether the defect is there.
"""
