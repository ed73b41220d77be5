"""What the shell around a command gives it, and is given: environment variables, and the completion of options."""

from collections.abc import Mapping, Sequence

COMPLETION = """\
_lightning_icl() {{
    local words
    case "${{COMP_WORDS[1]}}" in
{cases}
        *) words="{commands} --help" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _lightning_icl lightning-icl lightning"""


def with_environment(args: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The arguments after those that variables such as PL_FIT__TRAINER__MAX_STEPS give, which any config beats.

    A name that is not all capitals is the option's as it stands: PL_FIT__data__task__init_args__T.
    """
    prefix, options = f"PL_{args[0]}__".upper() if args else "-", {}
    for name in (name for name in environment if name.startswith(prefix)):
        key = name.removeprefix(prefix).replace("__", ".")
        options[key.lower() if key.isupper() else key] = environment[name]
    keys = sorted(options, key=lambda key: (key != "config", key))  # the other variables beat the one of the config
    return [*args[:1], *(f"--{key}={options[key]}" for key in keys), *args[1:]]


def bash_completion(options: Mapping[str, Sequence[str]]) -> str:
    """A script by which bash, and zsh after bashcompinit, completes commands, their options and files."""
    cases = [f'        {command}) words="{" ".join(names)}" ;;' for command, names in options.items()]
    return COMPLETION.format(cases="\n".join(cases), commands=" ".join(options))
