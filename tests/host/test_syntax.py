"""The text of a module's syntax, of which digests are made, is the same for all versions of Python."""

from jaxformer.host.syntax import dump, parse_code


def test_text_of_the_syntax_is_that_of_python_3_11():
    text = dump(parse_code(b'def f(x):\n    """Docstring."""\n    return x()\n'))
    arguments = "arguments(posonlyargs=[], args=[arg(arg='x')], kwonlyargs=[], kw_defaults=[], defaults=[])"
    call = "Return(value=Call(func=Name(id='x', ctx=Load()), args=[], keywords=[]))"
    function = f"FunctionDef(name='f', args={arguments}, body=[{call}], decorator_list=[])"
    assert text == f"Module(body=[{function}], type_ignores=[])"
