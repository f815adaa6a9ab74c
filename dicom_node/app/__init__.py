"""App: settings become objects, objects become processes; and is everything right?"""
