"""``python -m dicom_node.cli`` is ``dicom-node``."""

from dicom_node.cli.root import main

main()
