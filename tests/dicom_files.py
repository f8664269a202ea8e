"""DICOM files written by pydicom, for tests that read them."""

import io

import numpy as np


def dicom(values: np.ndarray, kind: str = "MONOCHROME2", syntax: str = "", bits: int = 0, **more) -> bytes:
    """A file of values [H, W] or [H, W, 3]; more: attributes by their keywords."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    dataset, syntax = Dataset(), UID(syntax or ExplicitVRLittleEndian)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = SecondaryCaptureImageStorage, "1.2.3", "OT"
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (*values.shape, 1)[2], kind
    dataset.BitsAllocated = values.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(values.dtype.kind == "i")
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    for name, value in more.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = (
        dataset.SOPClassUID,
        "1.2.3",
    )
    if syntax.is_encapsulated:
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\4\0\0\0\xff\xd8\xff\xd9\xfe\xff\xdd\xe0\0\0\0\0"
    stored = io.BytesIO()
    dataset.save_as(stored, enforce_file_format=True)
    return stored.getvalue()
