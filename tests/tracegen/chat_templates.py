# SPDX-License-Identifier: Apache-2.0
"""Chat templates of the fixtures: what models use, and what Jinja does with white space, scopes and
values."""

CHAT_TEMPLATES = {
    # As models have them.
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set first = messages[0]['content'] %}{% else %}{% set rest = messages %}"
    "{% set first = false %}{% endif %}{% for m in rest %}"
    "{% if loop.index0 == 0 and first != false %}"
    "{% set text = '<<SYS>>\\n' + first + '\\n<</SYS>>\\n\\n' + m['content'] %}"
    "{% else %}{% set text = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}{% else %}"
    "{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama3": "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}",
    "zephyr": "{% for m in messages %}\n{% if m['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + m['content'] + eos_token }}\n{% elif m['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + m['content'] + eos_token }}\n{% elif m['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + m['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}",
    "chatml": "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    '{{ "<|im_start|>system\\nYou\'re \\"helpful\\"<|im_end|>\\n" }}{% endif %}'
    "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "chatml-bare": "{% for m in messages %}"
    "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "smollm2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' "
    "%}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
    "Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}",
    # What went wrong with forms that were told by their markers.
    "think": "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
    "trims": "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "no-newline": "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "fixed-system": "{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% for m in messages %}"
    "{% if m.role != 'system' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "<|im_start|>assistant\n",
    "alternating": "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ message['content'] + eos_token }}{% endif %}{% endfor %}",
    # The language.
    "ws1": "{%- for m in messages -%}\n  {{- m.role }} : {{ m.content -}}  \n{% endfor %}\n\n",
    "ws2": "  {# c #}\nA\n   {% if true %}\n  B\n  {%- endif +%}\n C {#- x -#}  D\n{%+ if true %}"
    " E{% endif %}\n",
    "ws3": "{% set x = 1 %}\n\n{{ x }}\n {% if x %}y{% endif %} z\r\nq\n",
    "crlf": "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\n",
    "ops": "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 + 3 * 4 - 1 }} {{ 'a' ~ 1 ~ none ~ true }}"
    " {{ not true or false }} {{ 1 < 2 < 3 }} {{ 'a' in 'bab' }} {{ 3 not in [1,2] }}"
    " {{ 'x' if false }}|{{ (1, 2)[1] }} {{ [1,2,3][-1] }} {{ 'hello'[1:3] }}"
    " {{ 'hello'[::-1] }} {{ [1,2,3,4][1:][0] }}",
    "str": "{{ ' x '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'a,b,,c'.split(',') | join('-') }}"
    "|{{ ' a  b '.split() | join('-') }}"
    "|{{ 'a</think>b'.split('</think>')[-1].lstrip('\\n') }}|{{ 'abc'.startswith('ab') }}"
    " {{ 'abc'.endswith('d') }} {{ 'hello world'.title() }} {{ 'aXb' | upper }}"
    " {{ 'aXb'.lower() | capitalize }} {{ 'abcabc'.replace('b','') }}"
    " {{ 'abcabc'|replace('b','z') }} {{ 'abc' | length }} {{ 'é你 ' | trim | length }}"
    " {{ '\\u4f60\\n\\t\\'\\x41' }}",
    "scope": "{% set a = 1 %}{% for i in range(3) %}{% set a = a + i %}{{ a }}{% endfor %}{{ a }}"
    "{% set ns = namespace(n=0, s='') %}{% for i in [1,2,3] %}{% set ns.n = ns.n + i %}"
    "{% if i == 2 %}{% continue %}{% endif %}{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns.n }}"
    "{{ ns.s }}",
    "loop": "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}"
    "{{ loop.length }}{{ loop.revindex }}{% if loop.previtem is defined %}"
    "{{ loop.previtem.role }}{% endif %}{% if loop.nextitem is defined %}"
    "{{ loop.nextitem.role }}{% endif %};{% else %}none{% endfor %}"
    "{% for k, v in {'a': 1, 'b': 'x'}.items() %}{{ k }}={{ v }},{% endfor %}"
    "{% for x in [] %}q{% else %}empty{% endfor %}",
    "forif": "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ m.content }}{% endfor %}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | map(attribute='role') | join(',') }}"
    "{{ (messages | rejectattr('role','equalto','user') | list)|length }}",
    "macro": "{% macro turn(role, content='none', end='!') %}[{{ role }}:{{ content }}{{ end }}"
    "]\n{% endmacro %}{{ turn('user', 'x') }}{{ turn('a', end='?') }}{% for m in messages %}"
    "{{- turn(m.role, m.content | trim) -}}{% endfor %}",
    "tests": "{{ x is defined }}{{ messages is defined }}{{ none is none }}{{ 'a' is string }}"
    "{{ messages is iterable }}{{ messages[0] is mapping }}{{ 3 is odd }}"
    "{{ 4 is divisibleby 2 }}{{ 1 is number }}{{ 'a' is not none }}{{ tools is none }}"
    "{{ messages is sequence }}{{ true is boolean }}{{ x is undefined }} {{ 2 is eq 2 }}"
    "{{ false is false }}",
    "defaults": "{{ x | default('d') }}{{ '' | default('d', true) }}{{ none | default('n') }}"
    "{{ none | default('n', true) }}{{ messages[0].get('tool') }}"
    "{{ messages[0].get('tool', 'zz') }}{{ messages[0].get('role') }}"
    "{{ bos_token | default('q') }}",
    "setblock": "{% set x %}  a {{ 1 }} {% endset %}[{{ x | trim }}]{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "nested": "{% if messages[0]['role'] == 'system' %}{% set offset = 1 %}{% else %}"
    "{% set offset = 0 %}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == offset) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ message['role'] ~ message['content'] }}{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ 'q\"\\n' | tojson }}"
    "{{ [1, true, none, []] | tojson }}",
    "gen": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "undef": "{{ x }}{{ messages[0].nothing }}{% for y in x %}1{% endfor %}{% if x %}2{% endif %}"
    "{{ x == y }}{{ messages[9] is defined }}",
    "undef2": "{{ x.y }}",
    "undef3": "{{ x + 'a' }}",
    "undef4": "{{ messages[0].content.a }}",
    "brk": "{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "prec": "{{ 'a' + 'b' | upper }}{{ not x is defined }}{{ 1 if x else 2 if x else 3 }}{{ '%' }}"
    "{{ \"}}\" }}{{ {'a': {'b': 1}}['a']['b'] }}{{ {'a': 1}.a }}"
    "{{ -1 | string ~ 'x' }}",
    "docs": "{% if documents %}D{% endif %}{% if tools is not none and tools %}T{% endif %}"
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
    "{% endif %}{{ add_generation_prompt }}",
}
