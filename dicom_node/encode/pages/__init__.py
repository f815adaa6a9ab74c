"""The report page and the overlay images, as secondary captures and encapsulated PDF."""
