"""A row of LLaVA's."""


def llava(image="red.png", question="<image>\nwhat is it?", answer="a shape", **fields) -> dict:
    row = {"id": "abc", "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
    return row | ({} if image is None else {"image": image}) | fields
