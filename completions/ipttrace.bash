# SPDX-License-Identifier: GPL-2.0-only
# bash: source it, or put it into /usr/share/bash-completion/completions/ipttrace.
# zsh: autoload -U +X bashcompinit && bashcompinit, then source it.
_ipttrace() {
	local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
	local commands="print record replay export agent lab doctor" command= options names
	local traces="--engine --netns --duration --ready-file --buffer --max-rate --stop-after"
	local hosts="--ssh --remote-command --until"
	local rows="--format --query --count"
	((COMP_CWORD > 1)) && [[ " $commands " == *" ${COMP_WORDS[1]} "* ]] && command=${COMP_WORDS[1]}
	case $before in
	--engine) COMPREPLY=($(compgen -W "auto kernel netlink" -- "$word")); return ;;
	--format) COMPREPLY=($(compgen -W "text csv jsonl pcapng" -- "$word")); return ;;
	--kernel) COMPREPLY=($(compgen -W "6.1 6.12" -- "$word")); return ;;
	--netns)
		names=$(ls /run/netns 2>/dev/null)
		COMPREPLY=($(compgen -W "$names" -- "$word"))
		return
		;;
	--ssh) COMPREPLY=($(compgen -A hostname -- "$word")); return ;;
	--ready-file | --record) COMPREPLY=($(compgen -f -- "$word")); return ;;
	esac
	case $command in
	"") options="$traces $hosts --version --help" ;;
	print) options="$traces $hosts $rows --help" ;;
	record) options="$traces $hosts --help" ;;
	replay | export) options="$rows --help" ;;
	agent) options="$traces --control --maxactive --help" ;;
	lab) options="--kernel --text --duration --record --help" ;;
	doctor) options="--help" ;;
	esac
	if [[ $word == -* ]]; then
		COMPREPLY=($(compgen -W "$options" -- "$word"))
	elif ((COMP_CWORD == 1)); then
		COMPREPLY=($(compgen -W "$commands" -- "$word"))
	else
		case $command in
		record | replay | export) COMPREPLY=($(compgen -f -- "$word")) ;;
		esac
	fi
}
complete -F _ipttrace ipttrace
