"""What W&B has written offline, read back by the format of its files."""

READ_WANDB = """
import glob, json, sys
from wandb.proto import wandb_internal_pb2

def chunks(data, block=32768):  # the format of LevelDB's log, after a header of seven bytes
    at, parts = 7, b""
    while at < len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the end of one
            yield parts
            parts = b""

(path,) = glob.glob(sys.argv[1] + "/wandb/offline-*/*.wandb")
for data in chunks(open(path, "rb").read()):
    record = wandb_internal_pb2.Record()
    record.ParseFromString(data)
    if record.HasField("history"):
        items = {i.key or "/".join(i.nested_key): i for i in record.history.item}
        print(json.dumps({key: json.loads(i.value_json) for key, i in items.items()}))
"""
