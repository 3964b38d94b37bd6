# SPDX-License-Identifier: GPL-2.0-only
# Made by tools/completions.py of what the program says: change nothing here.
# source it, or put it into /usr/share/bash-completion/completions/ipttrace.
_ipttrace() {
	local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
	local commands="print record replay export lab demo doctor agent" command= options files=
	((COMP_CWORD > 1)) && [[ " $commands " == *" ${COMP_WORDS[1]} "* ]] && command=${COMP_WORDS[1]}
	case $before in
	--engine) COMPREPLY=($(compgen -W "auto kernel netlink" -- "$word")); return ;;
	--netns) COMPREPLY=($(compgen -W "$(ls /run/netns 2>/dev/null)" -- "$word")); return ;;
	--duration) COMPREPLY=(); return ;;
	--ready-file) COMPREPLY=($(compgen -f -- "$word")); return ;;
	--buffer) COMPREPLY=(); return ;;
	--max-rate) COMPREPLY=(); return ;;
	--stop-after) COMPREPLY=(); return ;;
	--until) COMPREPLY=(); return ;;
	--ssh) COMPREPLY=($(compgen -A hostname -- "$word")); return ;;
	--remote-command) COMPREPLY=(); return ;;
	--format) COMPREPLY=($(compgen -W "text csv jsonl pcapng" -- "$word")); return ;;
	--query) COMPREPLY=(); return ;;
	--count) COMPREPLY=(); return ;;
	--kernel) COMPREPLY=($(compgen -W "6.1 6.12" -- "$word")); return ;;
	--record) COMPREPLY=($(compgen -f -- "$word")); return ;;
	--maxactive) COMPREPLY=(); return ;;
	esac
	case $command in
	"") options="--help --version --engine --netns --duration --ready-file --buffer --max-rate --stop-after --until --ssh --remote-command" ;;
	print) options="--help --engine --netns --duration --ready-file --buffer --max-rate --stop-after --ssh --remote-command --until --format --query --count" ;;
	record) options="--help --engine --netns --duration --ready-file --buffer --max-rate --stop-after --ssh --remote-command --until" files=1 ;;
	replay) options="--help --format --query --count" files=1 ;;
	export) options="--help --format --query --count" files=1 ;;
	lab) options="--help --kernel --text --duration --record" ;;
	demo) options="--help --text --duration --record" ;;
	doctor) options="--help" ;;
	agent) options="--help --engine --netns --duration --ready-file --buffer --max-rate --stop-after --control --maxactive" ;;
	esac
	if [[ $word == -* ]]; then
		COMPREPLY=($(compgen -W "$options" -- "$word"))
	elif ((COMP_CWORD == 1)); then
		COMPREPLY=($(compgen -W "$commands" -- "$word"))
	elif [[ $files ]]; then
		COMPREPLY=($(compgen -f -- "$word"))
	fi
}
complete -F _ipttrace ipttrace
