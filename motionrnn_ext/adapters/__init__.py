"""Adapters: a MotionRNN in other packages' programs, a module for each, named like the package.

`pysteps`   a nowcast method
`openstl`   a method of OpenSTL's trainer
`mlcast`    a network of mlcast's Lightning module

Nothing imports them but the user's program, and each needs its package, except that of mlcast.
"""
